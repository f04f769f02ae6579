"""Which rows come next: allocation, order, plan, limits; on the host and on the device."""
