// Light, dark, or as the system has it; kept in this browser, and never in a link.

export type Theme = "auto" | "light" | "dark";
export const themes: Theme[] = ["auto", "light", "dark"];

const KEY = "polyhead-theme";

function kept(): Theme {
  try {
    const found = localStorage.getItem(KEY) as Theme;
    return themes.includes(found) ? found : "auto";
  } catch {
    return "auto"; // a sandboxed frame has no storage
  }
}

const system = matchMedia("(prefers-color-scheme: dark)");

class Themed {
  chosen: Theme = $state(kept());
  #system = $state(system.matches);
  dark = $derived(this.chosen === "dark" || (this.chosen === "auto" && this.#system));
  /** The colour of zero on a scale of signed numbers. */
  neutral = $derived(this.dark ? "#2c323b" : "#f0ede4");

  constructor() {
    system.addEventListener("change", (event) => (this.#system = event.matches));
    this.#apply();
  }

  choose(theme: Theme): void {
    this.chosen = theme;
    try {
      localStorage.setItem(KEY, theme);
    } catch {
      // kept for this page alone
    }
    this.#apply();
  }

  #apply(): void {
    if (this.chosen === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = this.chosen;
  }
}

export const theme = new Themed();
