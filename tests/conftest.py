"""Options of the test run."""


def pytest_addoption(parser):
    parser.addoption("--zoo", action="store_true", help="test the whole model zoo (minutes), not a subset")
