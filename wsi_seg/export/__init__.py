"""Writers of results; each knows one form and nothing of how the nuclei were found."""
