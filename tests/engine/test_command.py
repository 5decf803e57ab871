"""The Command stand-in under the real engine: what a program that uses pulumi-command relies on."""

from harness import alive, wait_for

LIFE = """
    import pulumi, os
    from pulumi_command import local

    pulumi.export("said", local.Command(
        "life",
        create="echo created; echo $PULUMI_COMMAND_STDOUT >> log; echo create >> log",
        update="echo updated after $PULUMI_COMMAND_STDOUT; echo update >> log",
        delete="echo delete after $PULUMI_COMMAND_STDOUT >> log",
        environment={"MOOD": os.environ["MOOD"]},
        triggers=[os.environ["TRIGGER"]],
        logging=local.Logging.NONE,
    ).stdout)
"""


def test_a_command_is_created_updated_replaced_and_deleted_as_its_inputs_say(pulumi):
    stack = pulumi(LIFE)

    def up(mood, trigger):
        return stack.run("up", env={"MOOD": mood, "TRIGGER": trigger}).operations.get("life")

    assert up("calm", "1") == ["create"]
    assert up("calm", "1") is None
    assert up("cross", "1") == ["update"]
    assert stack.outputs() == {"said": "updated after created"}
    assert "create-replacement" in up("cross", "2")
    stack.run("destroy", env={"MOOD": "cross", "TRIGGER": "2"})
    log = (stack.folder / "log").read_text().splitlines()
    # The first line is the previous output that the first create saw: none. So is the fourth.
    assert log[:5] == ["", "create", "update", "", "create"]
    assert log[5:] == ["delete after updated after created", "delete after created"]


def test_preview_runs_nothing_and_a_dependent_value_is_unknown(pulumi):
    stack = pulumi(
        """
        import pulumi
        from pulumi_command import local

        first = local.Command("first", create="touch ran; echo one")
        local.Command("second", create=first.stdout.apply(lambda text: f"echo {text}"))
        """
    )
    result = stack.run("preview")
    assert result.changes == {"create": 3}
    assert not (stack.folder / "ran").exists()
    assert "warning" not in result.stdout


def test_a_secret_stays_secret_in_state_outputs_and_what_is_shown(pulumi):
    stack = pulumi(
        """
        import pulumi
        from pulumi_command import local

        said = local.Command(
            "said",
            create="cat; echo $TOKEN >&2",
            stdin=pulumi.Output.secret("stdin-hunter2"),
            environment={"TOKEN": pulumi.Output.secret("env-hunter2")},
            logging="none",
        )
        pulumi.export("said", said.stdout)
        pulumi.export("plain", local.Command("plain", create="echo open").stdout)
        """
    )
    result = stack.run("up", "--diff")
    assert "hunter2" not in result.stdout
    assert "hunter2" not in str(stack.state())
    assert stack.outputs() == {"said": "[secret]", "plain": "open"}
    assert stack.outputs(show_secrets=True)["said"] == "stdin-hunter2"


def test_lines_are_shown_while_the_command_runs_and_only_those_asked_for(pulumi):
    stack = pulumi(
        """
        from pulumi_command import local

        local.Command(
            "slow",
            create="echo loading 10 %; echo unasked >&2; until [ -e go ]; do sleep 0.05; done",
            logging=local.Logging.STDOUT,
        )
        """
    )
    running = stack.start("up")

    def shown():
        return running.event_log.exists() and "loading 10 %" in running.event_log.read_text()

    running.wait_until(shown, "the line to be shown while the command runs")
    (stack.folder / "go").touch()
    result = running.wait()
    assert result.code == 0
    assert "unasked" not in result.stdout


def test_a_failed_command_shows_its_end_leaves_its_siblings_alone_and_runs_again(pulumi):
    stack = pulumi(
        """
        from pulumi_command import local

        local.Command("bad", create="echo why it failed >&2; test -e fixed || exit 3", logging="none")
        local.Command("good", create="echo fine")
        """
    )
    result = stack.run("up", expect_failure=True)
    assert "exit status 3" in result.stdout
    assert "why it failed" in result.stdout
    assert {each["urn"].rsplit("::", 1)[-1] for each in stack.state()} >= {"good"}
    assert "bad" not in str([each["urn"] for each in stack.state()])
    (stack.folder / "fixed").touch()
    assert stack.run("up").operations == {"bad": ["create"]}


def test_many_commands_wait_at_once(pulumi):
    stack = pulumi(
        """
        from pulumi_command import local

        # Each ends only when all are there.
        for index in range(40):
            create = f"touch at-{index}; until [ $(ls | grep -c ^at-) = 40 ]; do sleep 0.1; done"
            local.Command(f"one-{index}", create=create, logging="none")
        """
    )
    assert stack.run("up").changes == {"create": 41}


def test_an_interrupt_kills_the_shell_alone_and_waits_for_whatever_holds_its_output(pulumi):
    stack = pulumi(
        """
        from pulumi_command import local

        local.Command("stuck", create="sh inner.sh; true", logging="none")
        """,
        files={"inner.sh": "echo $$ $PPID > pids; until [ -e go ]; do sleep 0.05; done"},
    )
    running = stack.start("up")
    pids = stack.folder / "pids"
    running.wait_until(lambda: pids.exists() and len(pids.read_text().split()) == 2, "the command to start")
    inner, shell = map(int, pids.read_text().split())
    running.interrupt()
    wait_for(lambda: not alive(shell), "the shell to end")
    assert alive(inner) and running.process.poll() is None
    (stack.folder / "go").touch()
    result = running.wait()
    assert result.code != 0
    assert "signal: killed" in result.stdout


def test_a_custom_timeout_kills_the_command(pulumi):
    stack = pulumi(
        """
        import pulumi
        from pulumi_command import local

        local.Command("late", create="exec sleep 600", opts=pulumi.ResourceOptions(
            custom_timeouts=pulumi.CustomTimeouts(create="1s")))
        """
    )
    assert "signal: killed" in stack.run("up", expect_failure=True).stdout


def test_run_is_an_invoke_that_keeps_nothing(pulumi):
    stack = pulumi(
        """
        import pulumi
        from pulumi_command import local

        loud = local.run_output(command="tr a-z A-Z", stdin="loud", interpreter=["/bin/bash", "-c"])
        pulumi.export("said", loud.stdout)
        """
    )
    assert stack.run("up").changes == {"create": 1}
    assert stack.outputs() == {"said": "LOUD"}
