"""K-PaaS Lab on one machine: its state folder, its processes, and what the machine can do."""
