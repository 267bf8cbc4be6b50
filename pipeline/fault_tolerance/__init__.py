"""fault_tolerance"""
