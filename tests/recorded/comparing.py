"""How a number is compared with a recorded one."""

import numpy as np


def close(found, expected, case, what):
    tolerance = case["numerics"]
    np.testing.assert_allclose(found, expected, rtol=tolerance["rtol"], atol=tolerance["atol"], err_msg=what)
