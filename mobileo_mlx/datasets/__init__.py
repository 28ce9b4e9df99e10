"""Training data from pictures: captions, questions and answers, as quadruplets."""
