"""Malicious or damaged input: it is read correctly, or refused with one line.

The tests make valid files, change bytes and fields of them, and pass them to the functions that the commands
call. `contract.py` checks each call, `mutations.py` changes files.

`make test` runs each fuzzer some tens of times, always with the same files. The long form takes new files for
the given number of seconds, shared among the fuzzers, and prints how often each ran:

    make fuzz RPP_FUZZ_SECONDS=600

A failure prints the smallest input that hypothesis finds, and how to reproduce it.
"""
