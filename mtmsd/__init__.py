"""MTMSD: multi-timestep multi-stage diffusion features for hyperspectral classification.

The science alone, with torch and numpy: no cluster, no raster formats, no printing. The modules stand
in the order of the data: spectral -> windows -> diffusion, unet -> features -> purify -> fusion ->
classifier, with split, metrics and training beside them. Source: arXiv 2306.08964.
"""
