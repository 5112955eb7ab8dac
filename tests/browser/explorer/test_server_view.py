"""The explorer's view of the server: facts, and live rates of calls."""

import re

from playwright.sync_api import expect

from latentserve.client import Client
from tests.support.explorer import Explorer


def test_facts_and_live_rates(explorer: Explorer, client: Client) -> None:
    tab = explorer.open("model=mnist&view=server")
    info = client.info()
    facts = tab.page.locator(".facts")
    expect(facts).to_contain_text(info.version)
    expect(facts).to_contain_text(info.onnxruntime_version)
    expect(facts).to_contain_text("mnist2d")
    models = tab.page.get_by_role("region", name="Models that are served").locator("tbody tr")
    expect(models).to_have_count(len(client.models()))
    expect(models.filter(has_text="photos")).to_contain_text("any size")
    expect(tab.page.locator(".snippet")).to_have_count(0)

    told = tab.page.get_by_text("calls a second.")
    expect(told).to_be_visible()
    row = tab.page.get_by_role("region", name="Calls by method").locator(
        "tr", has_text=re.compile("Sample.*grpc")
    )

    def rate() -> float:
        client.sample(1, model="mnist")
        found = row.inner_text().split() if row.count() else ["0"]
        return float(found[-1])

    tab.until(lambda: rate() > 2, "calls are counted")
    assert float(told.inner_text().split()[0]) > 2
    assert tab.page.locator(".curve polyline").get_attribute("points")
    # The view stops looking when another is chosen.
    tab.page.get_by_role("button", name="Dimensions").click()
    expect(tab.page.locator(".slider").first).to_be_visible()
    before = len([one for one in tab.requests if one.url.endswith("/v1/metrics")])
    tab.page.wait_for_timeout(2500)
    assert len([one for one in tab.requests if one.url.endswith("/v1/metrics")]) == before
