"""Parts of `pp.pick_peaks`: the ions of one spectrum, of a file and of a table, and the errors of their masses."""
