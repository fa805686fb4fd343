"""One HTML page about one or several runs, without network: python -m tools.report runs/NAME [runs/OTHER ...].

run_record  what a run's folder says; what is missing or broken becomes a note on the page
figures     the curves of all runs on one axis, with plotly
samples     which stored responses the page shows, with their scores
grades      which of them are right
page        the page: page.html (a template), page.css, page.js
"""
