"""Any two sets of images, without a project: `fid`, `kid` and `ipdiff evaluate SAMPLES --reference FILE`."""
