"""imzML files: header, index of the spectra, and their intensities. Read by `io` and by `pp.pick_peaks`; knows no AnnData."""
