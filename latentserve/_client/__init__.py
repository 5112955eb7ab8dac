"""The blocking and the asyncio client, and the code that they share."""
