"""What becomes of a build and of a run when something goes wrong under them.

Each ends in one of two ways: finished, after a second call where the first one ended, with the very arrays,
tensors and figures of an undisturbed one; or one sentence. RPP_KILLS says how many kills each kind of process
gets (5 in `make test`, 100 in `make faults`), RPP_FAULTS_SEED which moments and places are drawn (0 if unset:
always the same), RPP_FAULTS_TABLE where a table of what was tried is written.
"""
