"""Nights: new data in, a better model out, or a good reason why not.

`night` is the story of one night, read first: look at the data, guard, train, judge, promote. Its
rooms are `intake`, which takes the data in, and `judging`, which compares a challenger with
champion and anchor; `desk` is what they share, and closes the night.

`champions` is the log of which model is the champion, and why; people write in it too. Behind them
`guard` refuses bad data, `gate` has the rules by which a challenger passes, `contest` computes what
each model makes of the same images, `servable` opens what was published as a stranger would, and
`records` keeps what every night came to. `notice` tells people, `history` shows them the log,
`proof` trains a champion again and compares the bytes, `pruning` removes what nothing names any
more.
"""
