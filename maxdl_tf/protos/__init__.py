"""Protocol buffers of the experiment files, generated from the folder protos/ when the package is built."""
