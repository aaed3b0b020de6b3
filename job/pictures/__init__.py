"""Pictures in and out: a person's drawing -> MNIST's form, predictions -> a picture to look at.

`handwriting` reads a photo or a drawing, with `ink` to find the digit on its paper; `gallery` draws
images with what a model made of them. The README beside says why no library of images is used.
"""
