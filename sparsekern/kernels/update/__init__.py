"""Triton kernels of optimiser steps that know the mask."""
