"""The one logger of the package."""

import logging

logger = logging.getLogger("stmsi")
if logger.level == logging.NOTSET:
    logger.setLevel(logging.INFO)
