"""A data set by URI -> checked arrays and a fingerprint.

`source` is the way in. Behind it `arrays` opens what files hold without trusting them, and
`examples` makes pixels and labels of it.
"""
