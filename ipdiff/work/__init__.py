"""What survives a kill: files, locks, signals, processes, train states, finished parts."""
