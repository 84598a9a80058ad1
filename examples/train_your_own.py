"""Input perturbation in a training loop of your own, with a network of diffusers: one line of it is the paper's.

python examples/train_your_own.py [--gamma 0.1] [--updates 500] [--out work/own]; half a minute on two CPU cores.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from PIL import Image
from sklearn.datasets import load_digits

from ipdiff import GaussianDiffusion, sample
from ipdiff.data.images import to_uint8


def main() -> None:
    """Train on 8x8 digits, draw 64 images, and leave a folder that DDPMPipeline loads."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gamma", type=float, default=0.1, help="strength of the perturbation; 0 is plain DDPM")
    parser.add_argument("--updates", type=int, default=500)
    parser.add_argument("--out", type=Path, default=Path("work/own"))
    args = parser.parse_args()

    noise = torch.Generator().manual_seed(0)
    torch.manual_seed(0)  # the network's first weights
    digits = torch.from_numpy(load_digits().images).float()  # [1797, 8, 8] in 0..16
    images = (digits / 8 - 1).unsqueeze(1)  # [N, 1, 8, 8] in [-1, 1]

    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    net = UNet2DModel(8, 1, 1, layers_per_block=1, block_out_channels=(32, 64), norm_num_groups=8, **blocks)
    scheduler = DDPMScheduler(1000, beta_schedule="squaredcos_cap_v2")
    diffusion = GaussianDiffusion.from_scheduler(scheduler, gamma=args.gamma)
    optimiser = torch.optim.AdamW(net.parameters(), lr=1e-3)
    average = torch.optim.swa_utils.AveragedModel(net, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.99))

    for update in range(1, args.updates + 1):
        x0 = images[torch.randint(len(images), (64,), generator=noise)]
        t = torch.randint(diffusion.T, (64,), generator=noise)
        eps, xi = torch.randn(x0.shape, generator=noise), torch.randn(x0.shape, generator=noise)
        # the paper's Alg. 3: the network sees x_t with eps + gamma xi in it, and has to say eps
        loss = diffusion.training_losses(net, x0, t, eps, xi)["loss"].mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        average.update_parameters(net)
        if update % 100 == 0 or update == args.updates:
            print(f"update {update}: loss {loss.item():.4f}")

    drawn = to_uint8(sample(average.module, diffusion, (64, 1, 8, 8), "ancestral-50", seed=0))[..., 0]  # [64, 8, 8]
    DDPMPipeline(average.module, scheduler).save_pretrained(args.out)
    Image.fromarray(drawn.reshape(8, 8, 8, 8).swapaxes(1, 2).reshape(64, 64)).save(args.out / "images.png")
    print(f"images: {args.out}/images.png")


if __name__ == "__main__":
    main()
