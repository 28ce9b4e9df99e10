"""The shapes world: a small procedural world to learn on and to be judged by.

`world` has the scenes and their pictures, `text` the captions, questions and edits with their truth attached,
`scorer` reads a picture and says whether it is what was asked for, `data` writes training files, and
`python -m benchmarks.shapes score --model M` judges a model.
"""
