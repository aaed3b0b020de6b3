"""What lies below an output: its runs and how they went, two of them compared, one brought home.

Changes no run, and needs no TensorFlow. `listing` finds the runs and how each is doing, and
`tables` shows them to people; `naming` finds the one that a command names. `comparing` tells two
apart, `fetching` copies one to this machine. `history` reads what nights and champions came to,
and `history_page` draws that and the runs.
Whatever is read may be damaged, or anybody's: `documents` takes only what is as it should be.
`reading` waits for many objects at once.
"""
