"""What people and dashboards look at: pages, pictures, event files and metrics of a run.

All of it is made from what a run has published, after that: nothing here can spoil a run, and
`mnist-job report` makes it again. Nothing heavy is loaded before it is used.
"""
