"""The host: one supervised process per device that holds the models and steps both lanes.

Its *wire thread* runs an event loop: frames, tokenising, text. Its *device thread* owns every array: load, prefill,
decode, unload.
"""
