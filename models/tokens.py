"""The numbers of the special tokens: what a decoder and a vocabulary must agree on."""

PAD, START, END, UNK = range(4)
