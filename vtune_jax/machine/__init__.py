"""The machine and its files: what a run needs of the operating system, the devices and the other processes."""
