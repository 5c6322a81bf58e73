"""Faults during builds and runs: kills, full disks, failing reads and others.

Each build or run must end in one of two ways: complete (after a second call if the first one was stopped),
with the same arrays, tensors and figures as an undisturbed one; or with one line of error.

Environment variables: RPP_KILLS is the number of kills of each kind of process (5 in `make test`, 100 in
`make faults`), RPP_FAULTS_SEED the seed of random moments and places (default 0), RPP_FAULTS_TABLE a file for
a table of all faults that were tried.
"""
