"""The statements: SQL as SQLAlchemy Core expressions over `tables`, one module for each subject.

Rules that every statement here keeps (the lint of the test suite checks them): values are bound; one clock (`NOW`);
no volatile function in UPDATE or DELETE; ON CONFLICT sets from `excluded` and the row itself only; an array parameter
is always text[].
"""
