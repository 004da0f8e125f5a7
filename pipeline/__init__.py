"""The stages of MTMSD over Ray, Zarr and xarray: reduce, pretrain, extract, classify, map, report."""
