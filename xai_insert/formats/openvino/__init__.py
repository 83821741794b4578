"""OpenVINO IR, and every other format that OpenVINO reads when the result is to be IR."""
