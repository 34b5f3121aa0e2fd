"""Where jobs are done: in this process, in workers of this machine, in a cluster."""
