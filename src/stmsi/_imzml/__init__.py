"""imzML files: header, index and intensities of the spectra, for `io` and `pp.pick_peaks`; knows no AnnData.

pyimzML is not used: it parses about thirty times slower, hands out one spectrum at a time and does not check them.
"""
