"""Nights: new data in, a better model out, or a good reason why not.

`night` is the story of one night, read first: look at the data, guard, train, judge, promote.
`champions` is the log of which model is the champion, and why; people write in it too. Behind them
`guard` refuses bad data, `gate` judges a challenger against champion and anchor on the same images,
`contest` computes what each of them makes of these, `servable` opens what was published as a
stranger would, and `records` keeps what every night came to. `notice` tells people, `proof` trains
a champion again and compares the bytes, `pruning` removes what nothing names any more.
"""
