"""The image recipe: pinned inputs in, one bootable and reproducible disk image out."""
