"""Data sets: IDX files and folders of pictures, downloaded, verified and split."""
