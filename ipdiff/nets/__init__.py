"""The two published denoising networks, state-dict compatible with their code bases."""
