"""The data plane, a process of its own: keys, plans, proxying to endpoints, metering."""
