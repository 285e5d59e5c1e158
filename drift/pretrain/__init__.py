"""The recipe that makes the embedded latent diffusion model from openly licensed pictures."""
