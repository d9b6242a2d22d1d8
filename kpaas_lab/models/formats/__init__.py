"""One module a format; each imports its library only when it is used."""
