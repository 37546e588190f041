"""Long random use of an engine, from several threads, with faults: does anything crash, leak, hang or lie?

    cases.py     requests drawn at random once, valid ones and some that must be refused
    expected.py  what the valid ones yield, from a plain engine that runs one at a time
    settings.py  how an engine may be set up: tiny pools, small budgets, with and without cache and overlap
    callers.py   threads that send cases in every way there is, and hold what comes back against the expected
    faults.py    a runner that raises now and then
    rounds.py    an engine opened, used for some seconds, checked, closed; again and again
    memory.py    how much memory the process has
    slope.py     whether memory grows, with an interval

Knows the whole engine. Nobody knows it but the shell. Imports nothing here: the shell says how torch's
threads wait before torch is there.
"""
