"""The numbers that experiments/*/README.md and README.md print, worked out again from the committed records.

One module a folder. `fragments(folder)` returns the pieces of the page's text that hold numbers, each with a word beside
it, as the records in `folder` give them; SETTINGS lists what no record holds: constants of the design. A page is right
where every piece stands in it and no digit is left without them (tests/test_experiments.py).
"""
