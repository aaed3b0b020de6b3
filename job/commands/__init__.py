"""The commands, by what they are for; those of one run are in `cli.py`, with the door itself.

Rooms: `nights` (what a night does by itself, and what people do to the log of champions), `tunes`
(studies), `looks` (what was published), `drill` (the proof that a stopped training resumes to the
bit); `flags`, each flag of all commands, `invocation`, what they are where nobody gives them, and
`console`, what commands that print a result share.
"""
