"""The ways a job can fail. Each has its own exit code; the message is one sentence."""


class JobError(Exception):
    exit_code = 1


class BadIdentifier(JobError):
    exit_code = 3


class InputMissing(JobError):
    exit_code = 4


class UnreadableImage(JobError):
    exit_code = 5


class NoGreenScreen(JobError):
    exit_code = 6


class NotAQuadrilateral(JobError):
    exit_code = 7


class OutputNotWritten(JobError):
    exit_code = 8
