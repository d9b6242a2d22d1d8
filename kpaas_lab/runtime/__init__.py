"""Code that runs inside a workload: training and serving. Never imported by `kpaas_lab.lab`."""
