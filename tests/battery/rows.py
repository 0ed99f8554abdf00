"""The rows of the battery: what is promised, at which size and with which goal, and the tests that hold it."""

import msgspec


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One promise."""

    name: str
    what: str
    goal: str
    tests: tuple[str, ...] = ()
    """As pytest is told them, below tests/."""
    bench: str = ""
    """A scenario of `scripts/bench`, held to these by the names of its figures."""
    at_least: dict[str, float] = {}
    at_most: dict[str, float] = {}


def tests(file: str, *names: str) -> tuple[str, ...]:
    """Tests of one file; the whole file where none is named."""
    return tuple(f"{file}::test_{name}" for name in names) or (file,)


ROWS = (
    Row(
        name="T1",
        what="a client leaves in the middle of its stream, in a silent gap, before the first token, without a stream; "
        "250 times each",
        goal="the engine gives up within 100 ms; no lease is left",
        tests=tests(
            "integration/test_client_gone.py",
            "a_client_gone_before_the_first_byte_of_its_stream_ends_its_request",
            "a_client_gone_in_the_middle_of_its_stream_ends_its_request",
            "a_client_gone_while_its_stream_says_nothing_ends_its_request",
            "a_client_gone_from_a_request_without_a_stream_ends_it",
        ),
    ),
    Row(
        name="T2",
        what="SIGTERM with 50 open streams",
        goal="50 whole; new connections refused within 0.5 s; exit code 0",
        tests=tests(
            "integration/test_stopping.py",
            "fifty_streams_that_are_open_when_the_gateway_is_told_to_stop_end_whole",
        ),
    ),
    Row(
        name="T3",
        what="a worker is replaced 20 times under 50 streams",
        goal="0 of 1,000 broken",
        tests=tests(
            "integration/test_swaps.py",
            "of_a_thousand_streams_under_which_their_worker_is_replaced_none_is_broken",
        ),
    ),
    Row(
        name="T4",
        what="10,000 requests are cancelled, a quarter in each phase",
        goal="100 of 100 served afterwards; no lease, task or descriptor left",
        tests=tests(
            "integration/test_cancelled_requests.py",
            "after_ten_thousand_cancelled_requests_a_hundred_of_a_hundred_are_served_and_nothing_is_left",
        ),
    ),
    Row(
        name="T5",
        what="5,000 requests of 40 clients to an engine that closes idle connections at the worst moments",
        goal="0 errors, none answered twice",
        tests=tests(
            "integration/test_idle_connections.py",
            "five_thousand_requests_to_an_engine_that_closes_idle_connections_early_are_served_once_each",
        ),
    ),
    Row(
        name="T6",
        what="an engine pushes 100 MiB to a client that never reads, as a stream and as JSON",
        goal="at most 10 MiB of memory; the worker is free again",
        tests=tests(
            "integration/test_limits.py",
            "a_client_that_never_reads_costs_at_most_ten_megabytes_and_is_cut_off_in_the_end",
        ),
    ),
    Row(
        name="T7",
        what="streams cut inside characters, with CRLF, comments, an event of 1 MB; without `[DONE]`, with an error "
        "frame, cut off",
        goal="bytes equal; the official clients raise where they should",
        tests=(
            *tests(
                "integration/test_streams.py",
                "every_byte_of_an_awkward_stream_arrives_wherever_its_chunks_end",
                "the_bytes_are_the_engines_own",
            ),
            *tests(
                "integration/test_upstream_faults.py",
                "the_openai_client_raises_where_a_stream_breaks",
                "the_anthropic_client_raises_where_a_stream_breaks",
            ),
            *tests(
                "integration/test_broken_engines.py",
                "a_stream_that_breaks_raises_in_the_client_and_is_never_sent_twice",
            ),
            *tests(
                "unit/test_completion_stream.py",
                "however_a_stream_is_cut_the_client_gets_every_event_but_the_usage_it_did_not_ask_for",
            ),
        ),
    ),
    Row(
        name="T8",
        what="an engine is killed in the middle of a stream",
        goal="the client has an error within 1 s; the record of usage is closed",
        tests=tests(
            "integration/test_crashes.py",
            "killing_an_engine_ends_its_streams_with_an_error_and_the_next_request_is_served",
        ),
    ),
    Row(
        name="T9",
        what="engines fail at every point of a call",
        goal="exact numbers of calls: one more try where nothing was answered, none after the first byte",
        tests=(
            *tests(
                "integration/test_upstream_faults.py",
                "a_fault_at_this_point_has_this_outcome_and_so_many_calls",
                "two_engines_that_both_cut_before_their_header_are_called_once_each",
                "an_engine_that_accepts_and_says_nothing_is_too_slow_and_its_request_is_not_sent_elsewhere",
            ),
            *tests(
                "integration/test_idle_connections.py",
                "a_request_that_was_answered_with_even_one_byte_is_not_sent_again",
            ),
        ),
    ),
    Row(
        name="T10",
        what="JSON answers at saturation, 256 connections",
        goal="at least 1,200 requests/s, 99th percentile at most 250 ms (asked for 50 connections)",
        bench="json-256",
        at_least={"per_second": 1200},
        at_most={"latency_ms.p99": 250},
    ),
    Row(
        name="T11",
        what="400 streams of 50 chunks/s, three times",
        goal="none lost; chunks at most 100 ms late, 99th percentile (asked for 200 streams)",
        bench="streams-400",
        at_least={"whole": 1200},
        at_most={"latency_ms.p99": 100},
    ),
    Row(
        name="T12",
        what="a header of 100 MB; 300 half-sent headers and 100 half-sent bodies",
        goal="at most 5 MiB each; all gone within 15 s",
        tests=tests(
            "integration/test_limits.py",
            "a_header_of_a_hundred_megabytes_costs_at_most_five",
            "three_hundred_half_sent_requests_are_all_gone_in_fifteen_seconds",
        ),
    ),
    Row(
        name="T13",
        what="50 clients write and read for 60 s, with backups beside them",
        goal="nobody is told that the database is locked; 99 of 100 writes within 20 ms",
        tests=tests(
            "unit/test_busy_database.py",
            "of_fifty_clients_that_write_during_backups_none_is_told_that_the_database_is_locked",
        ),
    ),
    Row(
        name="T14",
        what="kill -9 of a writer, 60 times",
        goal="no committed row lost, none half there; integrity ok",
        tests=tests("unit/test_database.py", "kill_9_of_a_writer_loses_no_committed_row_and_keeps_no_half_of_one"),
    ),
    Row(
        name="T15",
        what="a backup of 100 MB beside a writer; a restore into an empty folder",
        goal="backup within 1 s, no write longer than 100 ms; an old key served within 10 s of the restore's begin",
        tests=(
            *tests("unit/test_busy_database.py", "no_writer_waits_for_the_backup_of_a_large_database"),
            *tests(
                "integration/test_backups.py",
                "a_backup_under_load_restored_into_a_fresh_folder_serves_the_old_key_within_ten_seconds",
            ),
        ),
    ),
    Row(
        name="T16",
        what="the disk is full, files take no writes, a page is damaged",
        goal="inference goes on, readiness says degraded, it recovers by itself",
        tests=tests("integration/test_database_trouble.py"),
    ),
    Row(
        name="T17",
        what="migrations from every earlier schema; killed before each statement",
        goal="today's schema to the letter; one version or the next, never between",
        tests=tests("unit/test_migrations.py"),
    ),
    Row(
        name="T18",
        what="kill -9 of the manager at ten points of a start and an end, before and after what Docker is asked for; "
        "20 times each",
        goal="as it should be within 10 s of its return; no orphan, no double",
        tests=tests(
            "docker/test_docker_trouble.py",
            "a_manager_killed_at_a_step_of_a_start_and_of_an_end_leaves_neither_orphan_nor_double",
        ),
    ),
    Row(
        name="T19",
        what="Docker's socket is cut, hangs, or answers 500; 30 s each",
        goal="no call beyond its limit; inference untouched; what was asked meanwhile done within 15 s",
        tests=(
            *tests(
                "docker/test_docker_trouble.py",
                "a_docker_engine_in_trouble_costs_no_worker_and_what_was_asked_meanwhile_is_done_afterwards",
            ),
            *tests("docker/test_docker_launcher.py", "every_call_on_a_hung_docker_engine_returns_within_its_limit"),
        ),
    ),
    Row(
        name="T20",
        what="an engine is killed or its container removed from outside",
        goal="out of routing within 1 s",
        tests=(
            *tests(
                "docker/test_manager_docker.py",
                "a_container_removed_behind_our_back_leaves_the_observed_set_within_a_second",
            ),
            *tests("docker/test_survival.py", "an_engine_removed_behind_our_back_is_noticed_and_replaced"),
            *tests("integration/test_crashes.py", "an_idle_engine_killed_behind_our_back_is_noticed_within_a_second"),
        ),
    ),
    Row(
        name="T21",
        what="an engine dies at each load: with a fake clock, and for real",
        goal="10 s doubling with each death, within 25 %; given up at the fifth (asked for the sixth)",
        tests=(
            *tests(
                "unit/test_reconcile.py",
                "the_back_off_doubles_from_ten_seconds_to_five_minutes_give_or_take_a_tenth",
                "the_fifth_death_within_half_an_hour_is_the_last",
                "deaths_are_forgotten_after_half_an_hour_and_after_ten_healthy_minutes",
            ),
            *tests("integration/test_manager.py", "each_death_is_waited_out_twice_as_long_and_the_fifth_is_the_last"),
        ),
    ),
    Row(
        name="T22",
        what="an engine that loads for ever",
        goal="left within 1 s of its deadline, with what it said",
        tests=tests("integration/test_manager.py", "a_load_that_takes_too_long_is_cut_off"),
    ),
    Row(
        name="T23",
        what="an engine that does not listen to SIGTERM, in a container and as a process",
        goal="gone within its grace and 2 s",
        tests=(
            *tests(
                "docker/test_docker_trouble.py",
                "an_engine_in_a_container_that_does_not_listen_to_term_is_gone_soon_after_its_grace",
            ),
            *tests("integration/test_manager.py", "one_worker_that_stops_slowly_holds_up_no_other"),
        ),
    ),
    Row(
        name="T24",
        what="100 starts and stops of one worker",
        goal="no conflict of names",
        tests=tests("docker/test_docker_launcher.py", "a_stop_is_proven_and_frees_the_name_every_time"),
    ),
    Row(
        name="T25",
        what="containers of others, of another instance, with labels like ours; one of ours that nobody knows",
        goal="the first three untouched; the last one not before the gateway has spoken",
        tests=(
            *tests(
                "docker/test_docker_trouble.py",
                "what_is_not_ours_is_never_touched_and_what_is_ours_not_before_the_gateway_has_spoken",
            ),
            *tests("docker/test_docker_launcher.py", "a_container_of_others_is_never_touched"),
        ),
    ),
    Row(
        name="T26",
        what="10,000 hostile descriptions of a worker; every rule on a real Docker Engine",
        goal="each a typed refusal, or a body in which an independent checker finds no fault",
        tests=(*tests("unit/test_policy.py"), *tests("docker/test_engine_container.py")),
    ),
    Row(
        name="T27",
        what="prompts, answers and keys in everything that is written; a stored hash as a key; a revocation",
        goal="0 found; 401; felt by the next request",
        tests=(
            *tests("integration/test_privacy.py", "no_prompt_no_answer_and_no_key_is_in_anything_that_is_written"),
            *tests(
                "unit/test_keyring.py",
                "what_is_stored_is_no_key",
                "a_right_id_with_another_secret_opens_nothing",
                "a_revoked_key_is_refused_from_the_next_request_on",
            ),
            *tests("integration/test_bad_input.py", "a_deleted_key_is_refused_from_the_next_request_on"),
        ),
    ),
    Row(
        name="T28",
        what="every route of vLLM; every route of the API without a key and with a weak one",
        goal="404; 401 and 403",
        tests=(
            *tests(
                "integration/test_api_schema.py",
                "every_route_of_vllm_is_404_unless_it_is_one_of_ours",
                "no_spelling_of_a_path_reaches_another_route_of_an_engine",
                "every_operation_asks_for_a_key_and_for_the_scope_that_the_document_names",
                "a_head_needs_the_same_key_and_gets_the_head_of_the_answer",
            ),
            *tests("engine/test_vllm_routes.py"),
            *tests(
                "integration/test_bad_input.py",
                "a_bad_key_is_refused",
                "a_key_without_the_scope_is_refused",
            ),
        ),
    ),
    Row(
        name="T29",
        what="what schemathesis thinks of in ten minutes, strange values in every field and parameter, bad requests",
        goal="no 500, and no answer that the OpenAPI document does not have",
        tests=(
            *tests(
                "integration/test_api_schema.py",
                "no_request_that_schemathesis_thinks_of_is_answered_otherwise_than_the_document_says",
                "no_value_of_any_field_is_too_strange",
                "no_value_of_any_parameter_is_too_strange",
            ),
            *tests("unit/test_openapi.py"),
            *tests("unit/test_form.py"),
            *tests("integration/test_bad_input.py"),
        ),
    ),
    Row(
        name="T30",
        what="gateway's and manager's rules together, in any order of events: 10,000 steps of a state machine",
        goal="no GPU promised twice; no lease on a draining worker; no state past its deadline",
        tests=(
            *tests("unit/test_fleet.py"),
            *tests(
                "unit/test_deadlines.py",
                "no_state_outlives_its_deadline_and_once_all_is_well_every_worker_serves",
            ),
            *tests("unit/test_planner.py", "no_card_is_ever_promised_beyond_what_it_has"),
        ),
    ),
    Row(
        name="T31",
        what="every line of both logs",
        goal="JSON; each request with its id; no prompt and no key",
        tests=tests("integration/test_privacy.py"),
    ),
    Row(
        name="T32",
        what="days of traffic, with broken engines, kills and replacements, in minutes",
        goal="memory, descriptors and tasks flat; no request broken but by a kill",
        tests=tests("integration/test_soak.py", "over_a_day_of_traffic_descriptors_tasks_and_memory_stay_flat"),
    ),
    Row(
        name="T33",
        what="`compose up`, and an upgrade to other images with 50 streams open",
        goal="ready within 30 s; 0 broken, every engine stays",
        tests=tests("docker/test_upgrade.py", "an_upgrade_under_streams_breaks_none_of_them_and_keeps_every_engine"),
    ),
)
