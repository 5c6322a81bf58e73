"""Input that somebody made to do harm, or that broke on its way: it is read right, or refused in one line.

Valid files are made here, then bytes and fields of them are changed, and what comes out is given to the
functions that the commands call. What has to hold of each call stands in `contract.py`, how files are changed
in `mutations.py`.

`make test` tries each fuzzer some tens of times, with the same files every time. The long form takes fresh
ones for as many seconds as it is told, shared among the fuzzers, and prints how often each was tried:

    make fuzz RPP_FUZZ_SECONDS=600

A failure prints the smallest input that hypothesis finds, and how to repeat it.
"""
