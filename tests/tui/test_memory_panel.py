"""The live map of memory."""

from edgekv.cache.moves import MoveLog


async def test_the_map_shows_tiers_columns_budget_and_moves(sit_down):
    """Guards what no other chat shows: every figure is the engine's own, and it is drawn again by itself."""
    async with sit_down("trip", size=(200, 60)) as person:
        await person.sees(
            "Memory", "not used in this run yet", "none in this run yet", "nothing had to give way"
        )
        await person.talks("x" * 100)
        await person.sees("1.0 MiB", "2.0 MiB", "4.0 MiB")
        await person.sees("This conversation: 128 tokens", "████████", "device 128", "exact", "of 131 tokens")
        chat = person.app.chat_screen.chat.conversation
        log = MoveLog()
        person.engine.moves = log.latest
        log.note(chat.sequence_id, "demoted", 256, "the device limit was reached")
        for _ in range(50):
            log.note(chat.sequence_id, "demoted", 1, "the device limit was reached")
            log.note(chat.sequence_id, "dropped", 1, "the host limit was reached")
        person.engine.where = lambda _id: "DDHHHSSS-" * 100
        await person.sees(
            "demoted 4,896 in 51 moves · trip",
            "dropped 800 in 50 moves",
            "▓",
            "▒",
            "·",
            "host 4,800",
            "computed again 1,600",
        )
        await person.does("given_up")
        await person.sees("every conversation's KV is there", "demoted 4,896 tokens in 51 moves of trip")
        log.note(chat.sequence_id, "evicted", 2, "no tier below has room for it")
        await person.sees(
            "evicted 32 tokens of trip: no tier below", "demoted 4,896 tokens"
        )  # while one looks
        await person.presses("escape")
        await person.misses("demoted 4,896 tokens")
        await person.does("unload")
        await person.sees("the memory is free")
        await person.talks("again")


async def test_the_map_has_a_page_where_there_is_no_room(sit_down):
    """Guards F4 on 80 columns: the map instead of the conversation, and back."""
    async with sit_down("trip") as person:
        await person.presses("f4")
        await person.sees("Memory", "This conversation")
        await person.presses("escape")
        await person.sees("Say something")
