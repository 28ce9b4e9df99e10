"""Operations in the form that the device at hand has a fast kernel for."""
